// Nobody outside gate 1 can say that it opened.
fn forge() -> dipylon::verify::Verified {
    dipylon::verify::Verified { evidence_age_ms: 0 }
}

fn main() {}
