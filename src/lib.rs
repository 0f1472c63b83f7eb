//! Dipylon.
pub mod model;
