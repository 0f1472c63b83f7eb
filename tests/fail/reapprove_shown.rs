// What a page shows decides nothing: gate 2 takes a grant that its round has read.
use dipylon::approve::reapprove;
use dipylon::state::{Grant, Shown};
use dipylon::verify::Verified;

fn again(verified: Verified<'_>, shown: Shown<Grant>) {
    let _reapproved = reapprove(verified, shown, false);
}

fn main() {}
