// Only the state constructs `Recorded`: the grant is in the journal.
fn forge(grant: std::sync::Arc<dipylon::state::Grant>) -> dipylon::state::RecordedGrant {
    dipylon::state::RecordedGrant::new(grant)
}

fn main() {}
