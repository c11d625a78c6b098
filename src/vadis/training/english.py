"""A little English of our own, to see what training on motion does to a language model's English."""

SAMPLE = (
    "The market opened before sunrise, while the streets were still wet from the night. A baker carried warm loaves across "
    "the square, and two students argued quietly about the price of apples. Nobody noticed the old clock above the town hall, "
    "which had stopped at half past four some years ago and had been right twice a day ever since.\n\n"
    "Water boils at a lower temperature in the mountains because the air presses on it less. For the same reason, bread rises "
    "faster there and cools sooner. People who move up from the coast often need a few weeks until their recipes, and their "
    "lungs, have adapted to the height.\n\n"
    "My grandmother kept her letters in a tin that once held tea. She read them to us on long winter evenings, changing the "
    "names when a story was not meant for children. Only much later did I learn that most of them had been written by her "
    "own sister, who crossed the sea at nineteen and never came home, although she promised it at the end of every page.\n\n"
    "To repair a bicycle tyre, take the wheel out of the frame and let the rest of the air escape. Lift one side of the tyre "
    "over the rim, pull out the tube, and pump it up again until you hear where the hole is. Clean the place, roughen it with "
    "sandpaper, spread a thin layer of glue, and wait. The patch holds best when you are patient.\n\n"
    "In the spring the committee published its report. It found that the bridge was safe but too narrow, that the ferry was "
    "wide but too slow, and that the town would have to choose. The mayor thanked everyone, smiled for the photograph, and "
    "asked for another report."
)
