//! Rotations: from the first header to the last, crashes at every point, hand-over to cryptsetup.

mod age;
mod crash;
mod driver;
mod handover;
mod luks1;
mod whole;
mod world;
