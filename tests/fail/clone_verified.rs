// `Approved` cannot be cloned, nor can the other values that a gate returns.
fn needs_clone<T: Clone>() {}

fn main() {
    needs_clone::<dipylon::approve::Approved>();
    needs_clone::<dipylon::approve::Reapproved>();
    needs_clone::<dipylon::verify::Verified>();
    needs_clone::<dipylon::state::RecordedGrant>();
}
