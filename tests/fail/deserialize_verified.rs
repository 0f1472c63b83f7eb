// The values that a gate returns cannot be deserialized.
fn needs_deserialize<T: serde::de::DeserializeOwned>() {}

fn main() {
    needs_deserialize::<dipylon::approve::Approved<'static>>();
    needs_deserialize::<dipylon::verify::Verified<'static>>();
}
