// Evidence without possession proves nothing.
use std::sync::Arc;

fn forge(attested: Arc<dipylon::verify::Attested>) -> dipylon::verify::Proven {
    dipylon::verify::Proven { attested }
}

fn main() {}
