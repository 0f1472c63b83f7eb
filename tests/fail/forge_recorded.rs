// Only the state constructs `Recorded`: the grant is in the journal.
fn forge(grant: std::sync::Arc<dipylon::state::Grant>) -> dipylon::state::Recorded {
    dipylon::state::Recorded::new(grant)
}

fn main() {}
