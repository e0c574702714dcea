//! How large images are: asked of their registries, each once in a while, and remembered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;

/// Asks a registry how large an image is.
pub trait ImageSizes: Send + Sync {
    /// Compressed bytes, or a sentence why they are not known. Within a few seconds: a rent may wait for it.
    fn compressed_bytes<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<u64, String>>;
}

/// Assumed of an image whose size is not known, in bytes: a CUDA and PyTorch training image with its libraries is 4 to 10 GB. Rather too
/// large, since a host that is given up too early is one that is paid for in vain, and left out without fault.
pub const ASSUMED_BYTES: u64 = 10_000_000_000;
/// A tag may be pushed anew; its size hardly changes.
const KNOWN_FOR: Duration = Duration::from_hours(6);
/// A registry that does not answer, or not us, is asked again after this time.
const UNKNOWN_FOR: Duration = Duration::from_mins(15);
/// Images that are remembered. A cluster's jobs share a handful.
const MOST: usize = 1_000;

/// What is known of images.
#[derive(Default)]
pub struct Images {
    sizes: Option<Arc<dyn ImageSizes>>,
    known: Mutex<BTreeMap<String, (Duration, Option<u64>)>>,
}

impl Images {
    /// Asks `sizes`; with `None` nothing is ever known.
    pub fn new(sizes: Option<Arc<dyn ImageSizes>>) -> Self {
        Self { sizes, known: Mutex::default() }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (Duration, Option<u64>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compressed bytes of the image at `now` (monotonic), as remembered or as its registry says. In a `hurry` (a machine was lost, the next
    /// one is to be rented within a second) what is remembered must do, however old it is.
    pub async fn bytes(&self, image: &str, now: Duration, hurry: bool) -> Option<u64> {
        let sizes = self.sizes.as_ref()?;
        let remembered = self.known().get(image).copied();
        if hurry || remembered.is_some_and(|(until, _)| until > now) {
            return remembered.and_then(|(_, bytes)| bytes);
        }
        let bytes = match sizes.compressed_bytes(image).await {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                tracing::info!(reason = "ImageSizeUnknown", image, error, "Assuming the size of an image");
                None
            }
        };
        let mut known = self.known();
        if known.len() >= MOST {
            // The one that would be asked for again first.
            let oldest = known.iter().min_by_key(|(_, (until, _))| *until).map(|(image, _)| image.clone());
            oldest.map(|image| known.remove(&image));
        }
        known.insert(image.to_owned(), (now + if bytes.is_some() { KNOWN_FOR } else { UNKNOWN_FOR }, bytes));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt as _;

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl ImageSizes for Counting {
        fn compressed_bytes<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<u64, String>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move { if image == "there" { Ok(5) } else { Err("the registry answers 404".to_owned()) } })
        }
    }

    #[test]
    fn each_image_is_asked_for_once_in_a_while() {
        let counting = Arc::new(Counting::default());
        let images = Images::new(Some(Arc::clone(&counting) as _));
        let at = |minutes| Duration::from_mins(minutes);
        let look = |image, minutes| images.bytes(image, at(minutes), false).now_or_never().expect("it is ready");
        let asked = || counting.0.load(Ordering::Relaxed);
        assert_eq!((look("there", 0), look("there", 359), asked()), (Some(5), Some(5), 1));
        assert_eq!((look("there", 360), asked()), (Some(5), 2));
        assert_eq!((look("gone", 0), look("gone", 14), asked()), (None, None, 3), "a failure is remembered too");
        assert_eq!((look("gone", 15), asked()), (None, 4));
        let hurry = |image| images.bytes(image, at(10_000), true).now_or_never().expect("it is ready");
        assert_eq!((hurry("there"), hurry("gone"), hurry("never asked"), asked()), (Some(5), None, None, 4));
        for n in 0..2 * MOST {
            images.bytes(&n.to_string(), at(15), false).now_or_never().expect("it is ready");
        }
        assert!(images.known().len() <= MOST);
        assert_eq!(Images::default().bytes("there", at(0), false).now_or_never(), Some(None));
    }
}
