// Nobody outside gate 2 can say that it opened.
fn forge() -> dipylon::approve::Approved {
    dipylon::approve::Approved { ttl: 1 }
}

fn main() {}
