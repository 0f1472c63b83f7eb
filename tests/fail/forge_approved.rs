// Only gate 2 constructs `Approved`.
fn forge<'r>() -> dipylon::approve::Approved<'r> {
    dipylon::approve::Approved { ttl: 1 }
}

fn main() {}
