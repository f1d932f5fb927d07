//! One secret value, such as an expanded key schedule.
// UNSAFETY: the value owns its block, which is initialized by the constructor before the box
// exists; references borrow from the box.
#![expect(unsafe_code, reason = "places a value in an arena block")]

use std::alloc::Layout;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::{SecretError, arena, wipe_stack};

/// A `T` in protected memory; dropped and wiped with the box.
pub struct SecretBox<T> {
    block: NonNull<T>,
}

// SAFETY: the box owns its value as `Box<T>` does.
unsafe impl<T: Send> Send for SecretBox<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for SecretBox<T> {}

impl<T> SecretBox<T> {
    /// Makes the value and moves it into protected memory, then wipes the stack it was made on.
    ///
    /// # Errors
    /// [`SecretError::OutOfMemory`]; `make` is not called then.
    pub fn new_with(make: impl FnOnce() -> T) -> Result<Self, SecretError> {
        let block = arena::take(Layout::new::<T>())?.cast::<T>();
        fill(block, make);
        wipe_stack();
        Ok(Self { block })
    }
}

/// A frame of its own, so that what `make` left behind lies below the caller's.
#[inline(never)]
fn fill<T>(block: NonNull<T>, make: impl FnOnce() -> T) {
    // SAFETY: the arena just handed out this block for a `T`: big enough, aligned, and unused.
    unsafe { block.write(make()) };
}

impl<T> Deref for SecretBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the block holds an initialized `T` for as long as the box lives.
        unsafe { self.block.as_ref() }
    }
}

impl<T> DerefMut for SecretBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and `&mut self` makes the access exclusive.
        unsafe { self.block.as_mut() }
    }
}

impl<T> Drop for SecretBox<T> {
    fn drop(&mut self) {
        // SAFETY: the value is initialized and not used after this.
        unsafe { self.block.drop_in_place() };
        // SAFETY: the block came from the arena with this layout and nobody else has its address.
        unsafe { arena::dealloc(self.block.as_ptr().cast(), Layout::new::<T>()) };
    }
}

impl<T> fmt::Debug for SecretBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBox(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_value_is_reachable_and_dropped_once() {
        let witness = Arc::new(7);
        let mut boxed = SecretBox::new_with(|| (Arc::clone(&witness), [1u8; 300])).unwrap();
        boxed.1[299] = 9;
        assert_eq!((*boxed.0, boxed.1[0], boxed.1[299]), (7, 1, 9));
        assert_eq!(Arc::strong_count(&witness), 2);
        drop(boxed);
        assert_eq!(Arc::strong_count(&witness), 1);
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", SecretBox::new_with(|| 12345u64).unwrap()), "SecretBox(..)");
    }

    #[test]
    fn alignment_beyond_the_arenas_is_refused() {
        #[repr(align(64))]
        struct Fine(#[expect(dead_code, reason = "gives the type a size")] u8);
        #[repr(align(8192))]
        struct TooMuch(#[expect(dead_code, reason = "gives the type a size")] u8);
        assert!(SecretBox::new_with(|| Fine(1)).unwrap().block.addr().get().is_multiple_of(64));
        assert!(SecretBox::new_with(|| TooMuch(1)).is_err());
    }
}
