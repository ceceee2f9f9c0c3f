//! Dead letters day by day: looked at, taken out, decoded again, removed.

pub mod command;
mod print;
pub mod replay;
pub mod verdict;
