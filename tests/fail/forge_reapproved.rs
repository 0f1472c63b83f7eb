// Only gate 2 constructs `Reapproved`.
use dipylon::state::{Grant, Recorded};
use dipylon::verify::Verified;

fn forge<'r>(verified: Verified<'r>, grant: Recorded<'r, Grant>) -> dipylon::approve::Reapproved<'r> {
    dipylon::approve::Reapproved { verified, grant }
}

fn main() {}
