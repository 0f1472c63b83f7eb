// Only gate 2 constructs `Reapproved`.
use dipylon::state::RecordedGrant;
use dipylon::verify::Verified;

fn forge(verified: Verified, recorded: RecordedGrant) -> dipylon::approve::Reapproved {
    dipylon::approve::Reapproved { verified, recorded }
}

fn main() {}
