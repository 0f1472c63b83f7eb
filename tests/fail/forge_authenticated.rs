// Evidence without possession proves nothing.
use std::sync::Arc;

fn forge(attested: Arc<dipylon::verify::Attested>) -> dipylon::verify::Authenticated {
    dipylon::verify::Authenticated { attested }
}

fn main() {}
