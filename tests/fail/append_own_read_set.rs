// A read set is what a round has read: no caller names one, and no caller makes an append of one.
use dipylon::journal::{Append, ReadSet};
use dipylon_sdk::model::{Event, Stream};

fn named(event: Event) {
    let read_set = ReadSet::new(vec![(Stream::Policy, 7)]);
    let _append = Append::new(vec![event], read_set, None, Vec::new());
}

fn written(append: Append) -> Append {
    Append { read_set: ReadSet::default(), ..append }
}

fn main() {}
