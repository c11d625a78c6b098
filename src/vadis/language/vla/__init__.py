"""MotionVLA: a vision-language model that speaks motion."""
