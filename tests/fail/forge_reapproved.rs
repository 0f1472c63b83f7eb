// Only gate 2 constructs `Reapproved`.
use dipylon::state::Recorded;
use dipylon::verify::Verified;

fn forge(verified: Verified, recorded: Recorded) -> dipylon::approve::Reapproved {
    dipylon::approve::Reapproved { verified, recorded }
}

fn main() {}
