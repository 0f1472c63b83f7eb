// `Approved` cannot be cloned, nor can the other values that a gate returns.
fn needs_clone<T: Clone>() {}

fn main() {
    needs_clone::<dipylon::approve::Approved<'static>>();
    needs_clone::<dipylon::approve::Reapproved<'static>>();
    needs_clone::<dipylon::verify::Verified<'static>>();
}
