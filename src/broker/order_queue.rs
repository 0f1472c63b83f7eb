//! The queue of orders: one round at a time, in the order in which they came, each person in one place at most.

use tokio::sync::{Mutex, MutexGuard};

use super::keyed_mutex::{KeyedMutex, KeyedMutexGuard};
use crate::model::PersonId;

/// The fair queue of applies and of orders that conflicted twice. A person with several orders holds one place, and the others wait
/// outside: however many orders one operator gives, an order of another waits for one of them.
#[derive(Debug, Default)]
pub(super) struct OrderQueue {
    people: KeyedMutex<PersonId>,
    queue: Mutex<()>,
}

/// The turn of one order. Dropping it passes the turn on.
#[derive(Debug)]
pub(super) struct OrderTurn<'a> {
    // Dropped before the person's place: another order of the person queues behind those that wait now.
    _turn: MutexGuard<'a, ()>,
    _place: Option<KeyedMutexGuard<'a, PersonId>>,
}

impl OrderQueue {
    /// Waits for the turn of an order of a person; of `None`, an apply, which has no others beside it.
    pub(super) async fn turn(&self, of: Option<&PersonId>) -> OrderTurn<'_> {
        let place = match of {
            Some(person) => Some(self.people.lock(person.clone()).await),
            None => None,
        };
        OrderTurn {
            _turn: self.queue.lock().await,
            _place: place,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    /// Starts orders one after another and returns who gets the turns.
    fn turns(orders: &[Option<&str>]) -> Vec<usize> {
        let queue = OrderQueue::default();
        let person = |id: &&str| PersonId::parse(id).expect("id");
        let people: Vec<Option<PersonId>> =
            orders.iter().map(|of| of.as_ref().map(person)).collect();
        let orders = people.iter().map(|of| Box::pin(queue.turn(of.as_ref())));
        let mut waiting: Vec<_> = orders.enumerate().collect();
        let mut context = Context::from_waker(Waker::noop());
        let (mut held, mut got) = (None, Vec::new());
        while !waiting.is_empty() {
            let mut next = None;
            waiting.retain_mut(|(n, order)| match order.as_mut().poll(&mut context) {
                std::task::Poll::Ready(turn) => {
                    assert!(next.replace((*n, turn)).is_none(), "two at a time");
                    false
                }
                std::task::Poll::Pending => true,
            });
            if let Some((n, turn)) = next {
                got.push(n);
                held = Some(turn);
            } else {
                drop(held.take());
            }
        }
        got
    }

    #[test]
    fn one_person_cannot_fill_the_queue() {
        let (olga, otto) = (Some("olga"), Some("otto"));
        assert_eq!(turns(&[olga, olga, olga, otto]), [0, 3, 1, 2]);
        assert_eq!(turns(&[olga, olga, None, otto, otto]), [0, 2, 3, 1, 4]);
    }
}
