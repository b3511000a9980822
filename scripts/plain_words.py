"""Find words that make readers stop. `make check` runs this over all text of the repository.

Each pattern has a plain replacement. Patterns are phrases that have no other use, so that nothing
needs an exception list.
"""

import re
import subprocess
import sys
from pathlib import Path

INSTEAD = {
    r"anew|afresh|done once more": "again",
    r"lest|shall|albeit": "so that … not, must, although",
    r"begun": "started",
    r"whoever|whichever|whomever": "name the person or the thing",
    r"hence|thus|whence|whereby|thereby|thereof|therein|upon": "so, by, on",
    r"foresaw|foresees?|foreseen": "expect, unexpected",
    r"mislaid|misplaced": "lost",
    r"bury|buried|buries": "dead-letter",
    r"deeds?": "task",
    r"chores?|keeps? house|housekeeping|looks? after|looked after": "maintenance",
    r"the books|ledger": "table",
    r"g[ia]ves? out|given out|giving out": "return, serve",
    r"go on|goes on|went on|going on": "continue",
    r"(is|are|was|were|be|been) away": "unavailable",
    r"out of reach": "unavailable",
    r"by the clock": "scheduled",
    r"but for": "except",
    r"of (ours|theirs|yours|hers)": "our, their, your",
    r"of (its|their|one's) own": "its own …, a separate …",
    r"mend(s|ed|ing)?": "fix, repair",
    r"wants (an?|no|to be)": "needs",
    r"(tells?|told) (how|what|apart|by)": "explain, show, distinguish",
    r"stands? in": "is in",
    r"likewise|as does|as do": "also",
    r"let alone|as it were": "say it directly",
    r"docker-compose(?= [-a-z]|`)": "docker compose",
    r"(?-i:[Nn]obody)(?!['\"`:])": "no one, no user",  # quoted, it is an account of the system
}
BANNED = [(re.compile(rf"(?i)\b({words})\b"), instead) for words, instead in INSTEAD.items()]
# This file lists the words, and licenses are not our text.
UNCHECKED = re.compile(
    r"(^|/)(LICENSE|.*\.(svg|png|lock)|requirements.*\.txt)$|^templates/|plain_words"
)

OLD_NAME = re.compile(r"^\| `[^`]+` \|")  # in a table of CHANGELOG.md


def findings(name: str, text: str) -> list[str]:
    """Return one line for each banned word in the text."""
    return [
        f'{name}:{number}: "{match[0]}": write {instead}'
        for number, line in enumerate(text.splitlines(), start=1)
        for pattern, instead in BANNED
        for match in pattern.finditer(OLD_NAME.sub("", line))
    ]


def main() -> int:
    listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True)
    names = [name for name in listed.stdout.split("\0") if name and not UNCHECKED.search(name)]
    found = [line for name in names for line in findings(name, Path(name).read_text("utf-8"))]
    print("\n".join(found or ["No banned word was found."]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
