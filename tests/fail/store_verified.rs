// A pass cannot be brought back from storage.
fn needs_deserialize<T: serde::de::DeserializeOwned>() {}

fn main() {
    needs_deserialize::<dipylon::approve::Approved>();
    needs_deserialize::<dipylon::verify::Verified>();
}
