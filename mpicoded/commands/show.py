"""Tables on the screen, as wide as they have to be."""

from rich.console import Console, RenderableType

WIDEST = 500  # columns


def show(shown: RenderableType, markup: bool = True) -> None:
    """Print as wide as it has to be: a pipe or a narrow terminal must not cut numbers off."""
    console = Console(soft_wrap=True)
    wide = console.options.update(max_width=WIDEST)
    console.width = max(console.width, console.measure(shown, options=wide).maximum)
    console.print(shown, markup=markup, highlight=False)
