# Sourced by quickstart.sh and tests/run.sh: the one place that makes .venv in the repository root.
# It needs bash, the core utilities and flock (all part of a bare Debian), and python3 >= 3.11.
# shellcheck shell=bash

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
stamps=$venv/.mpicoded # one file for each part that is installed; it holds the fingerprint

say() { printf 'mpicoded: %s\n' "$*"; }
die() { printf 'mpicoded: %s\n' "$*" >&2; exit 1; }

# Runs the command $2... and says in one line each what it does and how long it took.
timed() {
    local what=$1 start=$SECONDS
    shift
    say "$what ..."
    "$@" || return
    say "done in $((SECONDS - start)) s"
}

# Prints what is wrong with the Python $1 and how to mend it; nothing when it will do.
python_fault() {
    if ! command -v -- "$1" >/dev/null; then
        echo "$1 is missing; install it: sudo apt install python3 python3-venv"
    else
        "$1" - 2>/dev/null <<'PY' || echo "$1 does not run; name another: PYTHON=/path/to/python3"
import importlib.util, platform, sys
if sys.version_info < (3, 11):
    print("python3 is %s and 3.11 or newer is needed; take Debian 12, Raspberry Pi OS 12 or newer, "
          "or name another: PYTHON=/path/to/python3" % platform.python_version())
elif sys.maxsize < 2**32:
    print("python3 is a 32-bit one, for which there is no PyTorch; take the 64-bit system")
elif not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
    print("python3 has no venv module; install it: sudo apt install python3-venv")
PY
    fi
}

# Sets `python` to $PYTHON if that is set, else to python3 or a newer one that lies beside it.
find_python() {
    local fault first='' names=(python3 python3.14 python3.13 python3.12 python3.11)
    [ -z "${PYTHON:-}" ] || names=("$PYTHON")
    for python in "${names[@]}"; do
        fault=$(python_fault "$python")
        [ -n "$fault" ] || return 0
        first=${first:-$fault}
    done
    die "$first"
}

# What decides an installation: the two files, and where they lie.
fingerprint() {
    { cat -- "$root/setup.cfg" "$root/pyproject.toml" && echo "$root"; } | sha256sum
}

installed() { # part
    [ -x "$venv/bin/python" ] && [ "$(cat -- "$stamps/$1" 2>/dev/null)" = "$(fingerprint)" ]
}

pip_install() {
    local bar=off
    ! [ -t 1 ] || bar=on
    "$venv/bin/python" -m pip install -q --progress-bar "$bar" --disable-pip-version-check \
        --log "$venv/pip.log" "$@"
}

cpu_builds=https://download.pytorch.org/whl/cpu

# PyTorch on PyPI is the CUDA build; pip's own settings may name another place. Raspberry Pi OS
# names piwheels.org, which has no PyTorch for 64 bits.
takes_cuda() {
    case $("$venv/bin/python" -m pip config list | grep -v piwheels) in
    *find-links* | *index-url*) return 1 ;;
    esac
}

# Many an x86-64 machine has a GPU for it, hardly any small aarch64 one has.
choose_torch() {
    case $(uname -m) in
    x86_64) ! takes_cuda || [ -d "$stamps" ] ||
        say "PyTorch comes with several GB of CUDA libraries; for the small build press Ctrl-C" \
            "and set PIP_EXTRA_INDEX_URL=$cpu_builds" ;;
    aarch64) ! takes_cuda || export PIP_EXTRA_INDEX_URL=$cpu_builds ;;
    esac
}

# MPICH gets a folder of its own, as it and Open MPI both own bin/mpirun; mpi4py serves the two.
install() { # part
    case $1 in
    mpich) timed "installing MPICH into .venv/mpich" \
        pip_install --prefix "$venv/mpich" --no-deps --ignore-installed "mpich >= 5" ;;
    *) timed "installing mpicoded[$1] and what it needs into .venv (once; some minutes)" \
        pip_install --editable "${root}[$1]" ;;
    esac
}

# Makes .venv. One whose Python is gone, or where a pip was killed at work, is made anew.
make_venv() {
    if [ -e "$stamps/unfinished" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
        find_python
        timed "making .venv with $("$python" --version)" "$python" -m venv --clear -- "$venv" ||
            die "no .venv could be made; is the disk full, or python3-venv missing?"
    fi
    choose_torch
    mkdir -p -- "$stamps"
}

# Installs the parts "$@" (extras of setup.cfg, or mpich) into .venv, each unless it is there.
# Two scripts at once take turns. A pip that is killed leaves the file `unfinished` behind; one that
# fails, for want of network say, leaves the packages as they were.
need() {
    local part
    for part; do
        installed "$part" && continue
        exec 9<>"$root/setup.cfg"
        flock -n 9 || { say "waiting for another script that is installing"; flock 9; }
        if ! installed "$part"; then
            make_venv
            trap 'exit 130' INT
            touch -- "$stamps/unfinished"
            install "$part" || { rm -f -- "$stamps/unfinished"; die "pip failed; its log: $venv/pip.log"; }
            fingerprint >"$stamps/$part"
            rm -f -- "$stamps/unfinished"
            trap - INT
        fi
        exec 9>&-
    done
}
