// Nobody can say that a key was held without its proof.
fn forge() -> dipylon::verify::Possession {
    dipylon::verify::Possession { action_digest: None }
}

fn main() {}
