"""What bash, zsh and fish offer for a line: each is run, with the script that pyvirt prints."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from pathlib import Path

from pyvirt.cli import completion

PATIENCE = 60.0
_BASH = r"""
source "$1"
compopt() { :; }
while IFS= read -r line; do
    COMP_LINE=$line COMP_POINT=${#line} COMPREPLY=()
    _pyvirt
    printf '%s\0' "${COMPREPLY[@]}"
    echo
done
"""
_FISH = r"""
source $argv[1]
while read line
    complete -C $line | string replace -r '\t.*' '' | string join0
    printf '\0\n'
end
"""
# Its line editor needs a terminal: it is given the lines by a hook, and tells what compadd is told.
_ZSH = r"""
PS1=
autoload -Uz compinit
compinit -u -D
source $SCRIPT
offers=()
compadd() {
    local -a __found
    if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)\ * ]]; then
        builtin compadd -A __found "$@"
        offers+=("$IPREFIX"$^__found)
    fi
    builtin compadd "$@"
}
show_all() { _main_complete; compstate[insert]=''; compstate[list]=''; }
zle -C show complete-word show_all
zle-line-init() {
    while IFS= read -r line; do
        offers=() BUFFER=$line CURSOR=$#line
        zle show
        print -rn -- "${(pj:\0:)offers}"
        print -rn $'\0\n'
    done <$ASKED >$TOLD
    BUFFER=exit
    zle accept-line
}
zle -N zle-line-init
"""


def _program(shell: str) -> str:
    found = shutil.which(shell)
    assert found, f"{shell} is missing; packages.debian lists it"
    return found


def offered(shell: str, folder: Path, lines: tuple[str, ...]) -> dict[str, set[str]]:
    """Return what the shell offers for each line when it stands in `folder`.

    It finds no program but ls, which fish lists folders by: what completes must need none.
    """
    programs = folder / ".bin"
    programs.mkdir()
    (programs / "ls").symlink_to(_program("ls"))
    script = folder / f"completion.{shell}"
    script.write_text(completion.script(shell), encoding="utf-8")
    asked = "".join(f"{line}\n" for line in lines)
    if shell == "bash":
        told = _told([_program(shell), "--norc", "-c", _BASH, "bash", str(script)], folder, asked)
    elif shell == "fish":
        told = _told([_program(shell), "--no-config", "-c", _FISH, str(script)], folder, asked)
    else:
        told = _told_by_zsh(folder, script, asked)
    rows = told.split("\0\n")[: len(lines)]
    return {line: set(row.split("\0")) - {""} for line, row in zip(lines, rows, strict=True)}


def _told(command: list[str], folder: Path, asked: str) -> str:
    done = subprocess.run(
        command, input=asked, capture_output=True, text=True, cwd=folder, timeout=PATIENCE,
        check=True, env=os.environ | {"HOME": str(folder), "PATH": f"{folder}/.bin"},
    )  # fmt: skip
    assert done.stderr == "", done.stderr
    return done.stdout


def _told_by_zsh(folder: Path, script: Path, asked: str) -> str:
    home = folder / ".zsh"
    home.mkdir()
    (home / ".zshrc").write_text(_ZSH, encoding="utf-8")
    (home / "asked").write_text(asked, encoding="utf-8")
    names = {"ZDOTDIR": home, "SCRIPT": script, "ASKED": home / "asked", "TOLD": home / "told"}
    environment = os.environ | {name: str(path) for name, path in names.items()}
    environment |= {"TERM": "dumb", "PATH": f"{folder}/.bin"}
    ours, its = pty.openpty()
    try:
        with subprocess.Popen(
            [_program("zsh"), "-d", "-i"], stdin=its, stdout=its, stderr=its, cwd=folder,
            env=environment, start_new_session=True,
        ) as shell:  # fmt: skip
            os.close(its)
            said = _read(ours)
            assert shell.wait(PATIENCE) == 0, said
    finally:
        os.close(ours)
    return (home / "told").read_text(encoding="utf-8")


def _read(fd: int) -> bytes:
    """Return what a terminal shows until its other end is closed."""
    said = b""
    try:
        while data := os.read(fd, 4096):
            said += data
    except OSError:
        pass
    return said
