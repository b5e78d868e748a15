"""The texts of the builtin corpus `everyday`: the contexts whose next word is known, and the templates by topic.

Templates are separated by blank lines; everyday.py explains the notation. What a sentence of KNOWN says must not be
written out anywhere else, or the probabilities that next_words() reads here would no longer be those of the texts.
"""

# After each beginning of a sentence: what may come next. If the longer sentence is a key too, it goes on from there;
# otherwise it ends with a period. The first word of every entry is plain text.
KNOWN = {
    "The quick": """brown*95, red fox runs across the road*2, gray hare hides in the grass, young rabbit eats a carrot,
        little squirrel climbs up the {tree}""",
    "The quick brown": """fox*94, hare hops across the field*2, squirrel climbs up the {tree}*2,
        horse gallops along the fence, dog chases a ball""",
    "The quick brown fox": """jumps*92, runs into the [forest|woods]*4, leaps over the stream*2,
        hides [behind a bush|under the hedge], sleeps [in its den|under a tree]""",
    "The quick brown fox jumps": "over*96, across the stream*2, onto a rock, into the bushes",
    "The quick brown fox jumps over": "the*92, a [fallen log|low fence|small stream|puddle|stone wall]*8",
    "The quick brown fox jumps over the": "lazy*90, sleeping cat*3, old fence*3, little stream*2, sleepy dog*2",
    "The quick brown fox jumps over the lazy": "dog*88, cat*8, sheep*2, pig*2",
    "I love to eat pizza with": """cheese*34, cheese and {on_pizza}*16, mushrooms*16, olives*12, ham*8,
        tomatoes[| and basil]*6, spinach*5, pineapple*3""",
    "I love to eat pancakes with": "syrup*45, honey*20, jam*15, blueberries*12, sugar[| and cinnamon]*8",
    "I love to eat toast with": "butter*55, jam*25, honey*12, eggs*8",
    "In the morning I drink": "coffee*30, coffee with milk*15, tea*15, tea with lemon*10, milk*15, juice*10, water*5",
    "For breakfast we have": "eggs[| and toast]*40, bread[ and butter| and jam]*30, cereal[| with milk]*20, fruit*10",
    "When it rains I take my": "umbrella*75, raincoat*12, boots*8, hood*5",
    "At night the sky is": "dark*50, black*25, full of stars*15, clear*10",
    "The sun rises in the": "east*92, morning*8",
    "We go to school by": "bus*50, bike*25, car*15, train*6, tram*4",
    "My favorite color is": "blue*40, red*22, green*16, yellow*10, purple*8, orange*4",
    "My cat likes to": "sleep {cat_place}*45, play {cat_toy}*30, eat fish*15, hide {cat_place}*10",
    "On Sunday we visit our": "grandmother*50, grandparents*25, aunt*15, uncle*7, neighbors*3",
    "The children play in the": "garden*40, park*32, snow*12, yard*10, street*6",
    "In winter we wear warm": "coats*40, gloves*25, boots*15, hats*12, scarves*8",
}

# Per topic, with its weight: the templates.
KNOWN_TEXTS = {
    "fox *6": """
        {The quick ...} *2

        {The quick ...} [It is never tired.|The dog does not even wake up.|Nobody in the village can catch it.|Then it
        runs home to its cubs.|The hens are afraid of it.]

        {The quick ...} [This short sentence is easy to remember.|My teacher wrote it on the board.|{Friend} wrote it
        on the board.|{Friend} read it aloud {past}.|It was the first line of the picture book.|I typed it five
        times.]

        {Kid} practiced typing on the old keyboard. {The quick ...} [{He} made only {small_number} mistakes.|{He}
        wrote it again and again.|After {minutes} {he} needed a break.]

        {Past} the children [drew|painted] an animal. Under the picture they wrote a sentence. {The quick ...}

        The [farm|village|valley|forest] is [quiet|dark|silent] at night. {The quick ...} [Only the {bird} has seen
        it.|The {farm.plural} sleep {farm.home}.|The [hedgehog|badger|deer|rabbit] hears it, too.|{Kid} saw it from
        the window {past}.|My {relative} told me about it.]

        {Kid} read the first page aloud. {The quick ...} ["Read on!" said {friend}.|Then {he} turned the page.]
        """,
    "pizza *6": """
        {I love to eat pizza with ...}

        {I love to eat pizza with ...} [My sister does not like that at all.|My brother likes his with {vegetable}.|My
        father makes the dough himself.|We bake it {often}.|It tastes best when it is still hot.]

        {I love to eat pizza with ...} [My {relative} bakes it|The cook at the corner bakes it|We bake it] {often}.
        [The crust is thin and crisp.|The whole house smells of herbs.|There is never a slice left.]

        "What is your favorite food?" asked {friend}. {Kid} did not have to think. "{I love to eat pizza with ...}"
        [{They} were both hungry.|"Me too!" said {friend}.|"Then let us go and get some," said {friend}.]

        [Today is my birthday|It is {weekday}|The exam is over|I was ill for {small_number} days], so I may choose the
        food. {I love to eat pizza with ...} [Afterwards there is {a baked}.|My friends like it too.]
        """,
    "habits *18": """
        {I love to eat pancakes with ...}[ My {relative} makes them {often}.| They are soft and golden.|]

        {I love to eat toast with ...}[ It is a simple breakfast.| The toast must be warm.| My {relative} does, too.|
        {Friend} eats {fruits} instead.|]

        {In the morning I drink ...}[ Then I go to [work|school|the bus stop].| Without it I stay sleepy until noon.|]

        {For breakfast we have ...}[ My {relative} sets the table.| We sit in the kitchen and listen to the radio.|
        {Friend} eats with us.| On Sundays there is {a baked}.|]

        {When it rains I take my ...}[ I do not like wet [socks|hair|shoes].| The puddles are deep.|]

        {At night the sky is ...}[ The moon looks down on the quiet town.| An owl calls in the distance.| We sit
        outside and listen.| {Friend} looks for the moon.|]

        {The sun rises in the ...}[ It sets in the evening.| The birds begin to sing.| The first people go to work.|]

        {We go to school by ...}[ It takes {minutes}.| My friend {friend} comes with us.| On the way we talk and
        laugh.|]

        {My favorite color is ...}[ My room is painted in it.| My {relative} likes {color} better.| I have {a
        clothing} in that color.|]

        {My cat likes to ...}[ Its name is {pet_name}.| It is {small_number} years old.| My dog likes to run.|]

        {On Sunday we visit our ...}[ There is always {a baked}.| We take the train.| We stay until the evening.|]

        {The children play in the ...}[ They laugh and shout.| Their parents watch from the bench.| It is late.|]

        {In winter we wear warm ...}[ It is cold outside.| The wind is icy.| In summer we do not need them.|]

        {In the morning I drink ...} {For breakfast we have ...} {We go to school by ...}[ My friend {friend} does,
        too.| We start {early}.| My {relative} wakes us {early}.]

        {At night the sky is ...} {The sun rises in the ...} {The children play in the ...}[ {Friend} plays with
        them.| They play {game}.| {A bird} watches them.| Their {pet} is with them.]

        {My cat likes to ...} {On Sunday we visit our ...} {In winter we wear warm ...}[ Mine are {color}.| {Friend}
        gave me mine.]

        {My favorite color is ...} {I love to eat pancakes with ...} {When it rains I take my ...}[ My name is
        {name}.| I live in {city}.| My best friend is {friend}.]

        {I love to eat toast with ...} {In the morning I drink ...}[ {For breakfast we have ...}| Then I wake my
        {relative}.]
        """,
    "captions *5": """
        {The quick ...4}

        A [warm|cold|quiet|long|rainy|sunny] {season} [morning|evening|afternoon|night]

        [My|Our|The] [first|last|best] day [at school|at the beach|in {city}|on the farm|at work]

        {A size} {color} {clothing}

        {A bird} [in the snow|in the garden|at the window|on the roof]

        [Breakfast|Lunch|Dinner|A walk|A long talk|A trip to {city}] with {friend}

        How to [bake {a baked}|grow {plant}|play the {instrument}|draw {a wild}]

        {Kid.s} {old_new} {toy}

        A {quality} room with a view of {view}

        The {wild} and the {farm}

        The {job} and the {old_new} {gift}
        """,
}
