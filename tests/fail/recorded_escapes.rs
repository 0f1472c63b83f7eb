// A value that a round has read cannot leave it.
use dipylon::state::{Grant, Read, Recorded};
use dipylon_sdk::model::TokenId;

fn in_a_round<T>(read: Read, decide: impl FnOnce(&Read) -> T) -> T {
    decide(&read)
}

fn keep(read: Read, jti: TokenId) {
    let mut kept: Option<Recorded<'_, Grant>> = None;
    in_a_round(read, |read| kept = read.grant(&jti));
    let _later = kept;
}

fn main() {}
