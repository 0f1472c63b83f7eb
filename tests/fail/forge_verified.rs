// Only gate 1 constructs `Verified`.
fn forge<'r>() -> dipylon::verify::Verified<'r> {
    dipylon::verify::Verified { evidence_age_ms: 0 }
}

fn main() {}
