//! Images and results in device memory, on the caller's stream.

use super::backend::Executor;
use super::gpu::Setting;
use super::{Engine, Session};
use crate::cuda::on_device::{DeviceImage, DeviceResults, ExternalStream};
use crate::error::{Error, Result};

impl Engine {
    /// Segments an image in device memory: enqueues all work on the caller's stream, waits for nothing, and
    /// gives where the results will lie. They are valid once that work is done and until the engine sees
    /// another image of the same size; they are the raw ones of [`DeviceResults`], at the image's size. The
    /// first image of a size is planned for, which takes time and waits.
    ///
    /// The engine's device must be that of the stream's context, which must be its primary one, as the CUDA
    /// runtime uses it. While an engine plans, no thread may wait for the whole context
    /// ([`cuda`](crate::cuda) says more).
    ///
    /// # Errors
    /// [`Error::Usage`] on the CPU, for an image without pixels, for addresses that are no device memory or
    /// have too little behind them as far as the driver tells (as
    /// [`Pipeline::enqueue`](crate::cuda::Pipeline::enqueue)), and for a stream of another context; as
    /// [`Engine::plan`]; [`Error::Cuda`] as the driver says.
    ///
    /// # Safety
    /// The image's memory must hold the image until the work is done, as far as the stream's order goes. The
    /// stream must live until then.
    pub unsafe fn segment_on_device(
        &mut self,
        image: &DeviceImage,
        stream: ExternalStream,
    ) -> Result<DeviceResults> {
        let (height, width) = image.size;
        if height * width == 0 {
            return Err(Error::usage(format!("a {height}x{width} image has no pixels")));
        }
        let geometry = self.preprocessor.geometry(height, width);
        let session = self.session(geometry.padded)?;
        let results = self.results(self.task);
        let Session { executor, cls_score, mask_preds, .. } = &mut self.sessions[session];
        let (Executor::Gpu(gpu), Some(runtime)) = (executor, self.backend.runtime()) else {
            return Err(Error::usage(format!("{} has no device memory", self.backend.name())));
        };
        let (preprocess, outputs) = (self.preprocessor.config(), [*cls_score, *mask_preds]);
        let setting = Setting { runtime, preprocess, results, outputs };
        // SAFETY: the caller vouches for image and stream.
        unsafe { gpu.enqueue(&setting, image, &geometry, stream) }
    }
}
