//! The live view: what is gathered, where the user is, how it is drawn.

/// Keys in, actions out.
pub mod app;
/// What samples add up to.
pub mod counts;
/// Draws the screen.
pub mod draw;
/// The threads that gather.
pub mod gather;
/// What the screen shows.
pub mod screen;
/// The terminal, taken and given back.
pub mod terminal;
#[cfg(test)]
mod tests;
