// Only gate 1 constructs `Verified`.
fn forge() -> dipylon::verify::Verified {
    dipylon::verify::Verified { evidence_age_ms: 0 }
}

fn main() {}
