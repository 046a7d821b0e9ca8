"""What can go wrong before the CPU library runs.

CpuLibraryError
├── NoCompiler                  there is none, and no compiled library either
├── CompileError                there is one, and it failed
└── UnsupportedInstructionSet   asked for by name, and this CPU lacks it
"""


class CpuLibraryError(Exception):
    """The CPU backend cannot be had on this machine; the text says why."""


class NoCompiler(CpuLibraryError):
    """Nothing to compile with; names what was looked for."""


class CompileError(CpuLibraryError):
    """The compiler failed; ends with the last lines that it wrote."""


class UnsupportedInstructionSet(CpuLibraryError):
    """Forced by name on a CPU that cannot run it; names those it can."""
