//! Seats: whether different people can fill them, where each takes some.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::PersonId;

/// Whether each seat finds a person whom it takes, and no person sits on two.
pub fn can_be_filled(seats: &[&[PersonId]]) -> bool {
    let mut seated: BTreeMap<&PersonId, usize> = BTreeMap::new();
    // One seat after the other finds a person; one who is seated moves to another seat that takes them.
    (0..seats.len()).all(|seat| find(seat, seats, &mut seated, &mut BTreeSet::new()))
}

/// Seats a person, moving others where that helps.
fn find<'p>(
    seat: usize,
    seats: &[&'p [PersonId]],
    seated: &mut BTreeMap<&'p PersonId, usize>,
    tried: &mut BTreeSet<&'p PersonId>,
) -> bool {
    for person in seats.get(seat).copied().unwrap_or_default() {
        if !tried.insert(person) {
            continue;
        }
        let is_free = match seated.get(person).copied() {
            None => true,
            Some(other) => find(other, seats, seated, tried),
        };
        if is_free {
            seated.insert(person, seat);
            return true;
        }
    }
    false
}
