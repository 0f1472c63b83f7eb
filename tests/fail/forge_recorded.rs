// Only a round constructs `Recorded`: the grant was read under the streams that can end it.
use std::sync::Arc;

use dipylon::state::{Grant, Recorded};

fn forge<'r>(grant: Arc<Grant>) -> Recorded<'r, Grant> {
    Recorded::new(grant)
}

fn main() {}
