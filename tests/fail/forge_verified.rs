// Only gate 1 constructs `Verified`.
fn forge<'r>() -> dipylon::verify::Verified<'r> {
    dipylon::verify::Verified { action_digest: None }
}

fn main() {}
