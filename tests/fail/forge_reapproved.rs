// A reissue needs gate 2's own word.
use dipylon::state::RecordedGrant;
use dipylon::verify::Verified;

fn forge(verified: Verified, recorded: RecordedGrant) -> dipylon::approve::Reapproved {
    dipylon::approve::Reapproved { verified, recorded }
}

fn main() {}
