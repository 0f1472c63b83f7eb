// Only the journal constructs `Committed`: an entry is durable.
fn forge(entry: std::sync::Arc<dipylon_sdk::model::Entry>) -> dipylon::journal::Committed {
    dipylon::journal::Committed { entry, blobs: Vec::new() }
}

fn main() {}
