// Only gate 1 constructs `Authenticated`: evidence without key possession does not authenticate.
use std::sync::Arc;

fn forge(attested: Arc<dipylon::verify::Attested>) -> dipylon::verify::Authenticated {
    dipylon::verify::Authenticated { attested }
}

fn main() {}
