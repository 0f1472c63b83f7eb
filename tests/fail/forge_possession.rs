// Only the proof check constructs `Possession`.
fn forge() -> dipylon::verify::Possession {
    dipylon::verify::Possession { action_digest: None }
}

fn main() {}
