//! Dipylon.
pub mod audit;
pub mod clock;
pub mod jose;
pub mod journal;
pub mod model;
pub mod rules;
pub mod state;
