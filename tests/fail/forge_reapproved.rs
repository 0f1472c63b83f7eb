// A reissue needs gate 2's own word.
use dipylon::state::Recorded;
use dipylon::verify::Verified;

fn forge(verified: Verified, recorded: Recorded) -> dipylon::approve::Reapproved {
    dipylon::approve::Reapproved { verified, recorded }
}

fn main() {}
