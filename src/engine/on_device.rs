//! Images and results in device memory, on the caller's stream.

use super::Session;
use super::network::Network;
use super::session::Ready;
use crate::cuda::on_device::ExternalStream;
use crate::error::{Error, Result};
use crate::image::view::ImageView;
use crate::task::DeviceResults;

impl Session {
    /// Segments an image in device memory: enqueues all work on the caller's stream, waits for nothing, and
    /// gives where the results will lie. They are valid once that work is done and until the session sees
    /// another image of the same size; they are the raw ones of [`DeviceResults`], of the size that
    /// [`SessionOptions::masks`](super::SessionOptions::masks) says. The first image of a
    /// size is planned for, which takes time and waits.
    ///
    /// The model's device must be that of the stream's context, which must be its primary one, as the CUDA
    /// runtime uses it. While a session plans, no thread may wait for the whole context
    /// ([`cuda`](crate::cuda) says more).
    ///
    /// # Errors
    /// [`Error::Usage`] on the CPU, for an image on the host, for addresses that are no device memory or have
    /// too little behind them as far as the driver tells (as
    /// [`Pipeline::enqueue`](crate::cuda::Pipeline::enqueue)), and for a stream of another context; as
    /// [`Session::plan`]; [`Error::Cuda`] as the driver says.
    ///
    /// # Safety
    /// The image's memory must hold the image until the work is done, as far as the stream's order goes. The
    /// stream must live until then.
    pub unsafe fn segment_on_device(
        &mut self,
        image: &ImageView<'_>,
        stream: ExternalStream,
    ) -> Result<DeviceResults> {
        let geometry = self.geometry(image)?;
        let Ready { network, adapter, pool, .. } = self.ready(image, &geometry, None)?;
        let Network::Cuda(gpu) = network else {
            return Err(Error::usage(format!("{} has no device memory", self.backend.name())));
        };
        if !gpu.has_pipeline(adapter, image) {
            // Kernels are compiled by the session's threads and no others.
            let (gpu, adapter) = (&mut *gpu, &mut *adapter);
            pool.run(move || gpu.pipeline(adapter, image).map(|_| ()))?;
        }
        // SAFETY: the caller vouches for image and stream.
        unsafe { gpu.enqueue(adapter, image, stream) }
    }
}
