//! Whatever a front-end sends, the session answers or ends; it doesn't panic or hang.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| sealblk_session::fuzz_messages(data));
