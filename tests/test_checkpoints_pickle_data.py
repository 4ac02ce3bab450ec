import collections
import pickle

import checkpoint_writers as writers
import pytest
from checkpoint_writers import Build, Call, Name
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import pickle_data
from checkpoints.pickle_data import Cursor, Instance, RefusedPickle

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=300)
KEYS = st.text(max_size=3) | st.integers() | st.booleans()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner), max_leaves=20
)
ALLOWED = {"collections.OrderedDict": pickle_data.plain_dict, "some.Class": lambda *args: Instance("some.Class", args)}


def read(data, allowed=ALLOWED, persistent=None):
    return pickle_data.read(Cursor(memoryview(data)), allowed, "w.pkl", persistent)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.sampled_from([3, 4, 5]))
def test_plain_data_reads_as_pickle_reads_it(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_shared_objects_stay_shared_and_ordered_dicts_become_dicts(protocol):
    shared = ["a" * 300, 1 << 80]
    value = collections.OrderedDict(first=shared, second=(shared, shared, shared), third=set(), fourth={1: shared})
    allowed = ALLOWED | {
        "__builtin__.set": lambda items: items,
        "builtins.set": lambda items: items,
    }  # protocols 2 and 3
    found = read(pickle.dumps(value, protocol), allowed)
    assert found == {"first": shared, "second": (shared,) * 3, "third": [], "fourth": {1: shared}}
    assert found["first"] is found["second"][0] is found["second"][2] is found["fourth"][1]


def test_pickles_may_follow_one_another():
    cursor = Cursor(memoryview(pickle.dumps([1]) + pickle.dumps("two") + b"rest"))
    assert [pickle_data.read(cursor, {}, "w"), pickle_data.read(cursor, {}, "w")] == [[1], "two"]
    assert cursor.read(10) == b"rest"


def test_an_allowed_class_becomes_an_inert_instance_with_its_state():
    found = read(writers.pickled(Build(Call(Name("some", "Class"), (1, "two")), {"weight": 3})))
    assert found == Instance("some.Class", (1, "two"), {"weight": 3})


def test_persistent_ids_are_refused_where_nothing_stands_for_them():
    data = writers.pickled(writers.Stored(("storage", 1)))
    assert read(data, persistent=lambda key: [key]) == [("storage", 1)]
    with pytest.raises(RefusedPickle, match="w.pkl: the pickle instruction BINPERSID"):
        read(data)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_name_off_the_list_is_refused_in_every_protocol(protocol):
    with pytest.raises(RefusedPickle, match="'pickle.Pickler'|'_pickle.Pickler'"):
        read(pickle.dumps(pickle.Pickler, protocol))


@pytest.mark.parametrize(
    "code",
    [
        b"(" + b"(I1\nt" + b"Nd.",  # text protocol
        b"(\x85Nd.",  # nothing to put into a tuple
        b"((K\x01tNd.",  # a tuple for a key
        b"]K\x05a(K\x00K\x01u.",  # entries set in a list
        b"}K\x01a.",  # an item appended to a dict
        b"(K\x01d.",  # a key without a value
        b"h\x07.",  # a memo entry that was never made
        b"N\x93.",  # a name that is no text
        b"e.",
        b".",
        b"",
    ],
)
def test_pickles_that_make_no_sense_are_damage_or_refused(code):
    with pytest.raises(ValueError, match="w.pkl"):
        read(b"\x80\x02" + code)
