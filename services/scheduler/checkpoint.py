"""The whole state of a scheduler core as bytes, and a core from such bytes that goes on alike.

A checkpoint is one MessagePack array `[FORMAT, layouts, root]`. A value is

    None, a bool, an int, a float, a string, bytes    as it is
    anything else                                     an array [kind, ...], see `_Kind`

`layouts` lists the classes of objects that occur: name, then names of fields. An object is written
where it is met first and numbered; from then on its number stands for it, so what was one object
for several holders is one again. Order in lists, dicts and queues is kept.

Nothing but data is read: only the classes listed here are ever made, by setting their fields. A
class that is not listed is refused when it is saved, so none can be forgotten.
"""

from array import array
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, IntEnum
from operator import attrgetter
from typing import Any, Final

import msgspec

from common import messages
from common.errors import RecordError
from common.token_ids import pack_ids, unpack_ids
from services.scheduler.block_groups import BlockGroups
from services.scheduler.block_pool import BlockPool
from services.scheduler.core import CoreOptions, SchedulerCore
from services.scheduler.cost_model import CostModel, StepShape
from services.scheduler.fair_order import FairOrder, Tenant
from services.scheduler.orca import Orca
from services.scheduler.output_lengths import OutputLengths
from services.scheduler.pass_budget import PassBudget
from services.scheduler.planner import Planner
from services.scheduler.prefill_first import PrefillFirst
from services.scheduler.prefix_cache import HashChain, PrefixCache
from services.scheduler.ranking import Ranking
from services.scheduler.replicas import Replica, Replicas, Step
from services.scheduler.request import Request, RequestStatus
from services.scheduler.slow_ratio import SlowRatio
from services.scheduler.splitfuse import SplitFuse
from services.scheduler.stats import SchedulerStats
from services.scheduler.time_account import TimeAccount
from services.scheduler.waiting_queue import WaitingQueue

FORMAT: Final = 3  # raised with every change that an older reader would misread
MAX_CHECKPOINT_BYTES: Final = 256 * 1024**2

#: classes of objects that a core consists of; all their fields are state
OBJECTS: Final[tuple[type, ...]] = (
    BlockGroups,
    BlockPool,
    CoreOptions,
    CostModel,
    FairOrder,
    HashChain,
    Orca,
    OutputLengths,
    PassBudget,
    Planner,
    PrefillFirst,
    PrefixCache,
    Ranking,
    Replica,
    Replicas,
    Request,
    SchedulerCore,
    SchedulerStats,
    SlowRatio,
    SplitFuse,
    Step,
    StepShape,
    Tenant,
    TimeAccount,
    WaitingQueue,
)
ENUMS: Final[tuple[type[Enum], ...]] = (RequestStatus,)

_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})
_OBJECTS: Final = {cls.__name__: cls for cls in OBJECTS}
_ENUMS: Final = {cls.__name__: cls for cls in ENUMS}
_MESSAGES: Final[dict[str, type[msgspec.Struct]]] = {
    name: value
    for name, value in vars(messages).items()
    if isinstance(value, type) and issubclass(value, msgspec.Struct)
}
#: what reading bytes that are no checkpoint may raise
_UNREADABLE: Final = (
    AttributeError,
    LookupError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


class _Kind(IntEnum):
    """First item of an array that stands for a value; what follows it."""

    OBJECT = 0  # layout's index, its fields' values ...; takes the next number
    SAME = 1  # number of an object
    LIST = 2  # items
    TUPLE = 3  # items
    DICT = 4  # keys, values
    ORDERED_DICT = 5  # keys, values
    DICT_OF_LISTS = 6  # keys, values; a defaultdict(list)
    SET = 7  # items, sorted
    FROZENSET = 8  # items, sorted
    DEQUE = 9  # longest length or None, items
    IDS = 10  # packed: an array("i")
    ENUM = 11  # class, value
    MESSAGE = 12  # class, the message as it travels


def save(core: SchedulerCore) -> bytes:
    """The state of a core between two events.

    Raises:
        RecordError: something in it is of no class listed here, or is shared and may not be, or
            the state is larger than MAX_CHECKPOINT_BYTES.
    """
    saver = _Saver()
    try:
        root = saver.save(core)
        data = msgspec.msgpack.encode((FORMAT, saver.layouts, root))
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RecordError(f"the scheduler's state cannot be saved: {error}") from error
    if len(data) > MAX_CHECKPOINT_BYTES:
        raise RecordError(
            f"the scheduler's state takes {len(data)} bytes, at most {MAX_CHECKPOINT_BYTES} "
            "can be saved"
        )
    return data


def load(data: bytes) -> SchedulerCore:
    """A core that will answer every event as the saved one would have.

    Raises:
        RecordError: these bytes are no checkpoint of this version of the scheduler.
    """
    if len(data) > MAX_CHECKPOINT_BYTES:
        raise RecordError(f"a checkpoint of {len(data)} bytes exceeds {MAX_CHECKPOINT_BYTES}")
    try:
        number, layouts, root = msgspec.msgpack.decode(data)
        if number != FORMAT:
            raise RecordError(f"a checkpoint of format {number}; this is {FORMAT}")
        core = _Loader(layouts).load(root)
    except _UNREADABLE as error:
        raise RecordError(f"not a checkpoint of this scheduler: {error}") from error
    if not isinstance(core, SchedulerCore):
        raise RecordError(f"the checkpoint holds a {type(core).__name__}, no scheduler")
    return core


def describe(data: bytes) -> Any:
    """What is in a checkpoint as plain values, fields by name: for comparing two of them.

    Raises:
        RecordError: as `load` does.
    """
    try:
        _, layouts, root = msgspec.msgpack.decode(data)
        return _describe(root, layouts)
    except _UNREADABLE as error:
        raise RecordError(f"not a checkpoint of this scheduler: {error}") from error


def _describe(saved: Any, layouts: Sequence[Sequence[str]]) -> Any:
    if type(saved) is not list:
        return saved
    kind, *rest = saved
    if kind == _Kind.OBJECT:
        _, *names = layouts[rest[0]]
        return dict(zip(names, (_describe(field, layouts) for field in rest[1:]), strict=True))
    if kind in (_Kind.DICT, _Kind.ORDERED_DICT, _Kind.DICT_OF_LISTS):
        keys, values = ([_describe(item, layouts) for item in items] for items in rest)
        return {str(key): value for key, value in zip(keys, values, strict=True)}
    if kind in (_Kind.MESSAGE, _Kind.ENUM, _Kind.IDS, _Kind.SAME):
        return rest
    return [_describe(item, layouts) for item in rest[-1]]


class _Saver:
    """One walk over all that can be reached from a core."""

    def __init__(self) -> None:
        self.layouts: list[tuple[str, ...]] = []
        self._layout_indices: dict[tuple[str, ...], int] = {}
        self._numbers: dict[int, int] = {}  #: id -> number, of objects
        #: ids of what can change and has no number: it must have one holder only
        self._held: set[int] = set()

    def save(self, value: Any) -> Any:
        """What stands for a value."""
        kind = type(value)
        if kind in _SCALARS:
            return value
        if kind in _FIELDS:
            return self._object(value)
        special = _SAVERS.get(kind)
        if special is None:
            return _save_leaf(value)
        if kind is not tuple and kind is not frozenset:
            self._hold(value)
        return special(self, value)

    def items(self, values: list[Any]) -> list[Any]:
        """What stands for each of many; most lists are long, and of numbers alone."""
        if _SCALARS.issuperset(map(type, values)):
            return values
        return [value if type(value) in _SCALARS else self.save(value) for value in values]

    def _object(self, value: Any) -> list[Any]:
        number = self._numbers.get(id(value))
        if number is not None:
            return [_Kind.SAME, number]
        self._numbers[id(value)] = len(self._numbers)
        names, fields = _FIELDS[type(value)](value)
        layout = (type(value).__name__, *names)
        index = self._layout_indices.get(layout)
        if index is None:
            index = self._layout_indices[layout] = len(self.layouts)
            self.layouts.append(layout)
        return [_Kind.OBJECT, index, *self.items(fields)]

    def _hold(self, value: object) -> None:
        if id(value) in self._held:
            raise TypeError(f"two objects share a {type(value).__name__}")
        self._held.add(id(value))


def _save_leaf(value: Any) -> list[Any]:
    """An enum's member or a message: values that refer to nothing else."""
    kind = type(value)
    name = kind.__name__
    if _ENUMS.get(name) is kind:
        return [_Kind.ENUM, name, value.value]
    if _MESSAGES.get(name) is kind:
        return [_Kind.MESSAGE, name, value]
    raise TypeError(f"{kind.__module__}.{kind.__qualname__} is not listed in checkpoint.py")


def _save_sorted(kind: _Kind, values: Iterable[Any]) -> list[Any]:
    items = sorted(values)
    if not _SCALARS.issuperset(map(type, items)):
        raise TypeError("a set holds more than numbers and strings")
    return [kind, items]


def _save_default_dict(saver: _Saver, value: "defaultdict[Any, Any]") -> list[Any]:
    if value.default_factory is not list:
        raise TypeError("of default dictionaries only those of lists can be saved")
    return [_Kind.DICT_OF_LISTS, saver.items(list(value)), saver.items(list(value.values()))]


def _save_ids(value: "array[int]") -> list[Any]:
    if value.typecode != "i":
        raise TypeError(f"of arrays only those of token ids can be saved, not {value.typecode!r}")
    return [_Kind.IDS, pack_ids(value)]


_SAVERS: Final[dict[type, Callable[[_Saver, Any], list[Any]]]] = {
    list: lambda saver, value: [_Kind.LIST, saver.items(value)],
    tuple: lambda saver, value: [_Kind.TUPLE, saver.items(list(value))],
    dict: lambda saver, value: [
        _Kind.DICT,
        saver.items(list(value)),
        saver.items(list(value.values())),
    ],
    OrderedDict: lambda saver, value: [
        _Kind.ORDERED_DICT,
        saver.items(list(value)),
        saver.items(list(value.values())),
    ],
    defaultdict: _save_default_dict,
    set: lambda _, value: _save_sorted(_Kind.SET, value),
    frozenset: lambda _, value: _save_sorted(_Kind.FROZENSET, value),
    deque: lambda saver, value: [_Kind.DEQUE, value.maxlen, saver.items(list(value))],
    array: lambda _, value: _save_ids(value),
}


class _Loader:
    """The inverse of `_Saver`."""

    def __init__(self, layouts: Sequence[Sequence[str]]) -> None:
        self._layouts = [_checked_layout(*layout) for layout in layouts]
        self._objects: list[Any] = []

    def load(self, saved: Any) -> Any:
        """The value that `saved` stands for."""
        if type(saved) is not list:
            return saved
        kind, *rest = saved
        if kind == _Kind.OBJECT:
            return self._object(*rest)
        if kind == _Kind.SAME:
            return self._objects[rest[0]]
        return _LOADERS[kind](self, *rest)

    def items(self, saved: list[Any]) -> list[Any]:
        if list not in set(map(type, saved)):
            return saved
        return [self.load(value) if type(value) is list else value for value in saved]

    def _object(self, index: int, *saved: Any) -> Any:
        cls, names = self._layouts[index]
        value: Any = object.__new__(cls)
        self._objects.append(value)  # before its fields, which may lead back to it
        fields = [self.load(field) if type(field) is list else field for field in saved]
        for name, field in zip(names, fields, strict=True):
            object.__setattr__(value, name, field)  # of frozen classes too
        return value


def _checked_layout(class_name: str, *names: str) -> tuple[type, tuple[str, ...]]:
    """The class and its fields' names, if the class of this version has the same."""
    cls = _OBJECTS[class_name]
    expected = _slot_names(cls)
    if expected is not None and names != expected:
        raise ValueError(f"{class_name} has other fields: {', '.join({*names} ^ {*expected})}")
    return cls, names


def _load_enum(class_name: str, value: Any) -> Enum:
    return _ENUMS[class_name](value)


def _load_message(class_name: str, value: Any) -> msgspec.Struct:
    return msgspec.convert(value, _MESSAGES[class_name])


_LOADERS: Final[dict[int, Callable[..., Any]]] = {
    _Kind.LIST: lambda loader, items: loader.items(items),
    _Kind.TUPLE: lambda loader, items: tuple(loader.items(items)),
    _Kind.DICT: lambda loader, keys, values: dict(
        zip(loader.items(keys), loader.items(values), strict=True)
    ),
    _Kind.ORDERED_DICT: lambda loader, keys, values: OrderedDict(
        zip(loader.items(keys), loader.items(values), strict=True)
    ),
    _Kind.DICT_OF_LISTS: lambda loader, keys, values: defaultdict(
        list, zip(loader.items(keys), loader.items(values), strict=True)
    ),
    _Kind.SET: lambda _, items: set(items),
    _Kind.FROZENSET: lambda _, items: frozenset(items),
    _Kind.DEQUE: lambda loader, maxlen, items: deque(loader.items(items), maxlen),
    _Kind.IDS: lambda _, packed: unpack_ids(packed),
    _Kind.ENUM: lambda _, class_name, value: _load_enum(class_name, value),
    _Kind.MESSAGE: lambda _, class_name, value: _load_message(class_name, value),
}


def _slot_names(cls: type) -> tuple[str, ...] | None:
    """Names of the fields that all instances have; None for a class without slots."""
    return getattr(cls, "__slots__", None)


def _fields_of(cls: type) -> Callable[[Any], tuple[Sequence[str], list[Any]]]:
    """A function from an instance to its fields' names and values."""
    names = _slot_names(cls)
    if names is None:
        return lambda value: (tuple(vars(value)), list(vars(value).values()))
    if len(names) < 2:  # of one name `attrgetter` makes no tuple
        return lambda value: (names, [getattr(value, name) for name in names])
    values_of = attrgetter(*names)
    return lambda value: (names, list(values_of(value)))


_FIELDS: Final = {cls: _fields_of(cls) for cls in OBJECTS}
