//! The finished blob as an agent: its own socket pair, and the way home.
