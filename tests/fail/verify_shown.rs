// What a page shows decides nothing: gate 1 takes a round that records what it reads.
use dipylon::state::Show;
use dipylon::verify::Authenticated;
use dipylon_sdk::model::Timestamp;

fn open(authenticated: &Authenticated, show: Show<'_>, now: Timestamp) {
    let _verified = authenticated.verify(&show, None, 60_000, now);
}

fn main() {}
