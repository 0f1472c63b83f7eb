//! Responses of the broker as plain values: what [`super::TaskHandle`], [`super::ApproverClient`] and
//! [`super::OperatorClient`] return.
//!
//! Identifiers are texts as the broker sent them; `parse` of the model's types reads them. Times have milliseconds, durations
//! are whole seconds. An optional field is `None` when the broker left it out, and when this client cannot read it: a newer
//! broker may say more than this client knows.

mod approval;
mod governance;
mod task;
mod token;

pub use approval::*;
pub use governance::*;
pub use task::*;
pub use token::*;

use crate::card::{AccessRequestStatus, CardDelay};
use crate::model::{Action, JournalPosition, Target, Timestamp, UseOutcome};
use crate::proto::{card, convert, v1};

/// A wire value read as a plain one. Not `From`: no generated type in the public interface.
pub(super) trait ReadWire<T> {
    fn read(self) -> T;
}

impl<T> ReadWire<T> for T {
    fn read(self) -> T {
        self
    }
}

impl ReadWire<Option<Timestamp>> for Option<prost_types::Timestamp> {
    fn read(self) -> Option<Timestamp> {
        convert::timestamp("time", &self?).ok()
    }
}

impl ReadWire<Option<i64>> for Option<prost_types::Duration> {
    fn read(self) -> Option<i64> {
        Some(self?.seconds)
    }
}

impl ReadWire<Option<CardDelay>> for Option<v1::Delay> {
    fn read(self) -> Option<CardDelay> {
        card::delay_from_wire(&self?).ok()
    }
}

impl ReadWire<Option<Action>> for Option<v1::Action> {
    fn read(self) -> Option<Action> {
        convert::action(&self?).ok()
    }
}

impl ReadWire<Option<Target>> for Option<v1::Target> {
    fn read(self) -> Option<Target> {
        convert::target(&self?).ok()
    }
}

impl ReadWire<Option<AccessRequestStatus>> for i32 {
    fn read(self) -> Option<AccessRequestStatus> {
        card::status(self).ok()
    }
}

impl ReadWire<Option<UseOutcome>> for i32 {
    fn read(self) -> Option<UseOutcome> {
        match v1::ConsumeOutcome::try_from(self).ok()? {
            v1::ConsumeOutcome::Unspecified => None,
            v1::ConsumeOutcome::Spent => Some(UseOutcome::Spent),
            v1::ConsumeOutcome::Repeated => Some(UseOutcome::Repeated),
            v1::ConsumeOutcome::NoLimit => Some(UseOutcome::NoLimit),
        }
    }
}

impl ReadWire<Option<JournalPosition>> for Option<v1::Position> {
    fn read(self) -> Option<JournalPosition> {
        self.map(convert::position)
    }
}

/// Declares a response with the message it is read from: same fields, plain types.
macro_rules! responses {
    ($($(#[$meta:meta])* $name:ident from $wire:ident { $($(#[$doc:meta])* $field:ident: $type:ty = $from:ident,)* })*) => {
        $(
            $(#[$meta])*
            #[derive(Debug, Clone, Default, PartialEq, Eq)]
            pub struct $name {
                $($(#[$doc])* pub $field: $type,)*
            }

            impl ReadWire<$name> for v1::$wire {
                fn read(self) -> $name {
                    $name { $($field: self.$from.read(),)* }
                }
            }

            impl ReadWire<Vec<$name>> for Vec<v1::$wire> {
                fn read(self) -> Vec<$name> {
                    self.into_iter().map(ReadWire::read).collect()
                }
            }

            impl ReadWire<Option<$name>> for Option<v1::$wire> {
                fn read(self) -> Option<$name> {
                    self.map(ReadWire::read)
                }
            }
        )*
    };
}

use responses;
