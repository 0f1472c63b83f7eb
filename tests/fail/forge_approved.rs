// Only gate 2 constructs `Approved`.
fn forge() -> dipylon::approve::Approved {
    dipylon::approve::Approved { ttl: 1 }
}

fn main() {}
