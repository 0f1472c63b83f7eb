// Only the proof check constructs `Possession`.
fn forge() -> dipylon::verify::Possession {
    dipylon::verify::Possession { adg: None }
}

fn main() {}
